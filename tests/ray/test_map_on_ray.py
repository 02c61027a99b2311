"""The command map on a Ray cluster of two node processes, one of which is killed."""

from __future__ import annotations

import threading

from data_sets import Model, numbered, results, start_map, write_program, write_rows


def test_each_row_has_one_result_though_a_node_is_killed(cluster, tmp_path):
    """Both nodes work; rows that were open on the killed one are asked again."""
    rows, out = write_rows(tmp_path / "rows.jsonl", numbered(600)), tmp_path / "out.jsonl"
    many, may_go_on = threading.Event(), threading.Event()
    asked = []

    def answer(number):
        asked.append(number)
        if len(asked) >= 200:  # the nodes are full
            many.set()
            may_go_on.wait(60)

    victim = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    with Model(answer) as model:
        program = write_program(tmp_path / "program.json", models=[model.settings()])
        arguments = (program, rows, "--out", out, "--ordered", "--ray", cluster.address)
        with start_map(*arguments, "--concurrency", "30") as process:
            assert many.wait(120), process.communicate()
            cluster.remove_node(victim, allow_graceful=False)
            may_go_on.set()
            output, error = process.communicate(timeout=120)
    assert (process.returncode, output, error.splitlines()[-1]) == (0, "", "map: 600 rows, 0 failed")
    assert list(results(out).items()) == [(n, {"outputs": {"answer": f"answer {n}"}}) for n in range(600)]
    assert 600 < sum(model.asked.values()) <= 630
