"""MAML, Meta-SGD and MAML++: a model, a chain of rules and an outer objective."""

from gradshare.methods.maml import maml
from gradshare.methods.maml_plus_plus import maml_plus_plus
from gradshare.methods.meta_learner import MetaLearner, OuterStep
from gradshare.methods.meta_sgd import meta_sgd

__all__ = ["MetaLearner", "OuterStep", "maml", "maml_plus_plus", "meta_sgd"]
