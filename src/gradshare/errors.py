"""The errors that gradshare shows to a user.

Each message names the cause, the value that caused it, and the remedy. The command line prints
the message alone; a traceback that reaches a user is a defect.
"""


class GradshareError(Exception):
    """Base of every error that a user can mend."""


class DataError(GradshareError):
    """Images, archives, stores or splits that cannot be used as they are."""


class ConfigError(GradshareError):
    """A setting with a value that cannot be used, or a setting that does not exist."""


class RunError(GradshareError):
    """A run's folder, checkpoint or results file that cannot be used as it is."""
