"""The cost of a search and its replay, on a tiny model: both engines agree on every candidate and on the best."""

import re

from bench import search_cost


def test_replay_agrees(world, capsys):
    search_cost.main(
        ["--model", world.model, "--task", world.task, "--tokens", "600", "--generations", "1", "--replay", "6"]
    )
    printed = capsys.readouterr().out
    assert "same best: True" in printed
    replayed = re.findall(r"plain (\S+) (\S+), search (\S+) (\S+),", printed)
    assert len(replayed) == 6
    for accuracy, loglik, searched, likely in replayed:
        assert accuracy == searched
        assert abs(float(loglik) - float(likely)) < 2e-4
    ratios = [float(ratio) for ratio in re.findall(r"ratio (\d+\.\d)", printed)]
    assert len(ratios) == 2
    assert ratios[0] > ratios[1] > 0
