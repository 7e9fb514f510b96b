"""What a person can fix.

Everything else that is raised is a bug and shows its traceback; `slam.cli` alone turns a `UserError`
into one line and exit code 2. A message says what, where, what was expected and what to do.
"""


class UserError(Exception):
    """A problem in what the user gave us: one line, exit code 2."""


class ConfigError(UserError):
    """A setting that does not exist or does not fit."""


class CameraError(UserError):
    """A camera description that cannot be used, or does not fit its images."""


class MaskError(UserError):
    """A mask that cannot be read, or does not fit its images."""


class SequenceError(UserError):
    """A source of images that cannot be read."""


class TrajectoryError(UserError):
    """A trajectory file that cannot be read, or two that do not overlap."""


class OutputError(UserError):
    """A place that cannot be written."""


class WeightsError(UserError):
    """A checkpoint that is missing, damaged or of another network."""


class MapError(UserError):
    """A saved map that is missing, damaged or of a newer version."""


class DeviceError(UserError):
    """A device that was asked for and is not there."""
