"""Models of other libraries: their folders and files in, ours out. Nothing is unpickled."""

from scoresde.interop.outwards import as_scheduler, as_sigma_denoiser

__all__ = ["as_scheduler", "as_sigma_denoiser"]
