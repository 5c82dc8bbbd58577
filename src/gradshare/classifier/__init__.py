"""From a trained run to predictions on examples of your own."""

from gradshare.classifier.checking import Check, check
from gradshare.classifier.estimator import FewShotClassifier

__all__ = ["Check", "FewShotClassifier", "check"]
