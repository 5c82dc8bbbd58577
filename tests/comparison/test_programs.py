"""Programs that compare: two in one folder, and a script with a module of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from gradshare.comparison.results import load_results
from tests.comparison.small import assert_same, small

PATIENCE = 240
ROUNDS = 2

pytestmark = pytest.mark.long


def test_of_two_programs_in_one_folder_one_compares_and_the_other_gets_one_error(
    tmp_path: Path,
) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from gradshare.errors import RunError
        from tests.comparison.driver import Slow
        from tests.comparison.small import small
        own, other, home = sys.argv[1], sys.argv[2], Path(sys.argv[3])
        workers = home / f"workers-{{own}}"
        workers.mkdir()
        for number in range({ROUNDS}):
            (home / f"ready-{{number}}-{{own}}").touch()
            while not (home / f"ready-{{number}}-{{other}}").exists():
                time.sleep(0.001)
            try:
                small(
                    home / str(number),
                    executor=ThreadPoolExecutor(1),
                    callbacks=[Slow(workers, 0.3)],
                    resume="auto",
                    seeds=1,
                    epochs=1,
                )
                print("compared", flush=True)
            except RunError as error:
                print(error, flush=True)
        """
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", program, *names, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    said = [process.communicate(timeout=PATIENCE) for process in programs]
    assert [errors for _, errors in said] == ["", ""]
    for number, outcomes in enumerate(zip(*(out.splitlines() for out, _ in said), strict=True)):
        folder = tmp_path / str(number)
        assert sorted(outcomes) == [
            f"another process is comparing in {folder}; wait for it, or choose another folder "
            "(--out)",
            "compared",
        ]
        assert len(load_results(folder).runs) == 2


def test_a_script_needs_no_main_guard_and_its_own_modules_reach_every_worker(
    tmp_path: Path,
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "my_nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n", encoding="utf-8"
    )
    script = scripts / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            import numpy as np
            import submitit
            import gradshare as gs
            from gradshare.comparison.compare import compare
            from my_nets import Net

            y = np.arange(14).repeat(10)
            x = np.random.default_rng(0).normal(size=(140, 6))
            tasks = gs.ClassTasks(x, y, ways=3, shots=1, queries=4)
            sources = tasks.split_classes(0.5, 0.25, 0.25)
            arms = {{"one": lambda: gs.maml(Net(6, 3), steps=1)}}
            elsewhere = submitit.AutoExecutor({str(tmp_path / "submitit")!r}, cluster="local")
            for name, executor in (("local", None), ("submitit", elsewhere)):
                compare(
                    arms,
                    *sources,
                    out={str(tmp_path)!r} + "/" + name,
                    executor=executor,
                    progress=False,
                    **dict(epochs=1, iterations=2, val_tasks=4, test_tasks=4, device="cpu"),
                )
            print("once")
            """
        ),
        encoding="utf-8",
    )
    said = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert said.stderr == ""
    assert said.stdout == "once\n"
    for name in ("local", "submitit"):
        assert load_results(tmp_path / name).runs[0].test


def test_a_pool_of_processes_is_an_executor(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, get_context("forkserver")) as pool:
        small(tmp_path / "pool", executor=pool, epochs=1, seeds=1)
    small(tmp_path / "here", executor=ThreadPoolExecutor(1), epochs=1, seeds=1)
    assert_same(tmp_path / "pool", tmp_path / "here")


def test_a_client_of_dask_is_an_executor(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.Client(**options) as client:
        small(tmp_path / "dask", executor=client)
    small(tmp_path / "here", executor=ThreadPoolExecutor(1))
    assert_same(tmp_path / "dask", tmp_path / "here")
