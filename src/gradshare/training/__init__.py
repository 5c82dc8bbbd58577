"""`fit`: the outer loop, evaluation, checkpoints, resume and several processes of one run.

`fit` begins a run or continues one. `prepare` makes its state, with `checks`, `identity` and
`layout`. `loop` trains it: `outer_loop` takes an iteration, `evaluation` measures with `metrics`,
`divergence` explains a refused iteration. `state` is what changes meanwhile; `folder`, with
`checkpoint`, `records` and `lock`, keeps it. `run` reads it again. Several processes of a run come
from `launch` and exchange through `distributed`.
"""
