"""Meta-learning methods: each is a model, an update rule and an outer objective."""

from gradshare.methods.alfa import alfa
from gradshare.methods.anil import anil
from gradshare.methods.boil import boil
from gradshare.methods.imaml import ImplicitMAML, imaml
from gradshare.methods.learner import Adapted, Learner, OuterStep
from gradshare.methods.maml import maml
from gradshare.methods.maml_plus_plus import maml_plus_plus
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.meta_sgd import meta_sgd
from gradshare.methods.proto_maml import ProtoMAML, proto_maml
from gradshare.methods.protonet import ProtoNet, protonet
from gradshare.methods.reptile import Reptile, reptile
from gradshare.methods.unicorn_maml import UnicornMAML, unicorn_maml

__all__ = [
    "Adapted",
    "ImplicitMAML",
    "Learner",
    "MetaLearner",
    "OuterStep",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "UnicornMAML",
    "alfa",
    "anil",
    "boil",
    "imaml",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "proto_maml",
    "protonet",
    "reptile",
    "unicorn_maml",
]
