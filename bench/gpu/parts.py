"""The parts of the measurement, in order of importance."""

from bench.gpu import (
    ceilings,
    choices,
    decoder,
    device_tests,
    few_rows,
    gram,
    groups,
    host,
    many_rows,
    peers,
    pointwise,
    search,
    training,
)
from bench.gpu.job import Part

PARTS = {
    part.name: part
    for part in (
        Part("ceilings", "what the device can do", 0.2, ceilings.jobs),
        Part("host", "host time of a call", 0.3, host.jobs),
        Part("operators", "layers of few rows", 1.2, few_rows.jobs),
        Part("gram", "Gram matrices", 0.6, gram.jobs),
        Part("decoder", "whole models", 2.0, decoder.jobs, decoder.missing),
        Part("groups", "query, key and value together; gated MLPs", 0.8, groups.jobs),
        Part("pointwise", "norms, rotary positions and activations", 0.2, pointwise.jobs),
        Part("tests", "the kernels' tests", 3.0, device_tests.jobs, device_tests.missing),
        Part("many", "layers of many rows", 1.5, many_rows.jobs),
        Part("training", "a step of training through a layer", 0.5, training.jobs),
        Part("peers", "torch.compile and gemlite", 0.6, peers.jobs),
        Part("search", "whole searches", 3.0, search.jobs, search.missing),
        Part("choices", "the fastest implementations", 1.0, choices.jobs),
    )
}
