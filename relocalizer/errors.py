"""Errors that the user can fix.

Every other exception is a bug and shows its traceback; only `slam.cli` turns a `UserError` into one line and exit
code 2. A message states the problem, its location, the expected value and the remedy.
"""


class UserError(Exception):
    """A problem in the user's input: one line, exit code 2."""


class ConfigError(UserError):
    """An unknown setting, or one with an invalid value."""


class CameraError(UserError):
    """A camera calibration that is invalid, or does not fit its images."""


class MaskError(UserError):
    """A mask that cannot be read, or does not fit its images."""


class SequenceError(UserError):
    """A source of images that cannot be read."""


class TrajectoryError(UserError):
    """A trajectory file that cannot be read, or two that do not overlap."""


class OutputError(UserError):
    """An output path that cannot be written."""


class WeightsError(UserError):
    """A checkpoint that is missing, damaged or belongs to another network."""


class MapError(UserError):
    """A saved map that is missing, damaged or written by a newer version."""


class TrainingError(UserError):
    """Training data that cannot be used, or a training that cannot continue."""


class DeviceError(UserError):
    """A requested device that is not available."""
