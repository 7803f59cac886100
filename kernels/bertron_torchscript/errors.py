"""What can go wrong between a checkpoint and a served model."""


class ExportError(Exception):
    """The checkpoint cannot be exported; the message names the file and the cause, in one line."""


class ManifestError(Exception):
    """What lies in the model repository is not what an export wrote there."""
