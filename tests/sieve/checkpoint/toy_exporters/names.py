"""A toy exporter that writes the names of the parameters: a new export format is one file."""

from sieve.checkpoint.exporters.base import Exporter


def export(model, tokenizer, source, output):
    output.write_text("".join(f"{name}\n" for name, _ in model.named_parameters()))


EXPORTER = Exporter("names of parameters", export, writes_file=True)
