"""What a stage is given besides its data, from the session's settings."""

from __future__ import annotations

from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Context
from dcdm_cli.signals import asked_to_stop


def open_job(context: Context, device: str | None = None) -> Job:
    """Settles the device (imports torch) unless the caller has one, and how images are decoded in this process."""
    if device is None:
        from dcdm_cli.backends.base import settle_device

        device, reason = settle_device(context.config.device)
        context.console.note(f"device: {device} ({reason})")
    _use_decode_options(context)
    console = context.console
    return Job(device, console.progress, asked_to_stop, console.note, console.detail)


def _use_decode_options(context: Context) -> None:
    from dcdm_cli.data.images import DecodeOptions, set_decode_options

    data = context.config.data
    set_decode_options(DecodeOptions(exif=data.exif, background=data.background, animated=data.animated))
