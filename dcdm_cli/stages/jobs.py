"""What a stage is given besides its data, from the session's settings."""

from __future__ import annotations

from dcdm_cli.run.progress import Job
from dcdm_cli.run.session import Session
from dcdm_cli.signals import asked_to_stop

KEPT = "finished work is kept"


def open_job(session: Session, device: str | None = None, *, here: bool = True) -> Job:
    """Settles the device (imports torch) unless the caller has one, makes it this process's current one, and settles
    how images are decoded.

    here: the work is done in this process; else workers make their devices current themselves. Raises
    InterruptedRunError when asked to stop: what is opened next takes seconds, and nothing is begun yet.
    """
    from dcdm_cli.workers.devices import settle_device, use_device

    if device is None:
        device, reason = settle_device(session.config.device)
        session.console.note(f"device: {device} ({reason})", once=True)
    if here:
        use_device(device)
    # of the whole process: rooms below never see the session. Worker pools are told by `pool_of`
    _use_decode_options(session)
    console = session.console
    job = Job(device, console.progress, asked_to_stop, console.note, console.detail, warn=console.warn)
    job.stop_if_asked(KEPT)
    return job


def _use_decode_options(session: Session) -> None:
    from dcdm_cli.data.images import DecodeOptions, set_decode_options

    data = session.config.data
    names = ("exif", "background", "animated", "value_range", "fit", "reduce_to", "max_pixels")
    set_decode_options(DecodeOptions(**{name: getattr(data, name) for name in names}))
