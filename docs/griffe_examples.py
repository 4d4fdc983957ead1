"""For mkdocstrings: the code's docstrings say "Example:" where its parser looks for "Examples:"."""

import griffe


class Examples(griffe.Extension):
    """Renames the sections as a module is read."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
