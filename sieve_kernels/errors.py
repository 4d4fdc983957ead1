"""Errors of this package whose message is for the user: one line that says what was wrong."""


class SettingError(ValueError):
    """An environment variable of this package has a value that cannot be used here; the message names both."""
