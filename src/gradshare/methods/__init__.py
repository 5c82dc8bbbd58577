"""Meta-learning methods: each is a model, an update rule and an outer objective."""

from gradshare.methods.learner import Learner, OuterStep
from gradshare.methods.maml import maml
from gradshare.methods.maml_plus_plus import maml_plus_plus
from gradshare.methods.meta_learner import Adapted, MetaLearner
from gradshare.methods.meta_sgd import meta_sgd
from gradshare.methods.unicorn_maml import UnicornMAML, unicorn_maml

__all__ = [
    "Adapted",
    "Learner",
    "MetaLearner",
    "OuterStep",
    "UnicornMAML",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "unicorn_maml",
]
