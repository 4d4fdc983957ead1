"""One low-rank pair for the matrices that read one input (DESIGN 2.5): q, k and v as one, gate and up as one.

Stacked, W = [W_1; W_2; …], they are one matrix Σm × n, and everything else here treats it as such: calibration, plans,
searches, pivoting, checkpoints. Its pair has one A for all of them. In the model, the stack is one more child of the
members' parent; the members stay where the architecture calls them and hand out their rows of its output.
"""

from torch import nn
from transformers import PreTrainedModel

from sieve.errors import InputError
from sieve.models.prunable_model import PrunableModel
from sieve.nn.formats.base import formats_of
from sieve.nn.stacked import stack_, stack_name
from sieve.utils import progress


def share_inputs_(model: PreTrainedModel, mlps: bool = True, required: bool = True) -> PreTrainedModel:
    """Stack the linear layers of a module that read one input into one layer, in place; returns the model.

    Their outputs stay what they were, up to rounding. To be done before calibration; what was made of the
    model before (statistics, factors, plans) does not fit it any more. A stack is named after its members:
    q_proj, k_proj, v_proj → qkv_proj; gate_proj, up_proj → gate_up_proj.

    mlps: those of MLPs too; not where these are to lose channels instead of ranks (method "widths").
    required: refuse a model in which nothing shares an input (architectures with fused projections share it already);
        else it stays as it is, with a note.

    Raises: InputError where nothing shares an input, or the model is pruned.

    Example:
        >>> model, tokenizer = sieve.load_model("smollm2")
        >>> statistics = sieve.calibrate(sieve.share_inputs_(model), tokenizer, "geography")
    """
    if formats_of(model):
        raise InputError("the model is pruned already: share the inputs of the dense model")
    groups: dict[str, list[str]] = {}
    known = PrunableModel(model)
    apart = set() if mlps else {name for writers in known.channel_writers.values() for name, _ in writers}
    for readers in known.input_groups:
        readers = [name for name in readers if type(model.get_submodule(name)) is nn.Linear and name not in apart]
        for parent in dict.fromkeys(name.rpartition(".")[0] for name in readers):
            members = [name.rpartition(".")[2] for name in readers if name.rpartition(".")[0] == parent]
            if len(members) > 1:
                groups[f"{parent}.{stack_name(members)}"] = members
    if not groups:
        none = f"{type(model).__name__} has no linear layers side by side that read one input: none to share"
        if required:
            raise InputError(none)
        progress.note(none)
        return model
    return stack_(model, groups)
