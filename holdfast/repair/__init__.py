"""Repaired gradients: a model with useful gradients, whatever its author wrote.

`repaired(model, images, labels)` says what had to be repaired, and gives the model with it; all
its answers stay as they are. An evaluation attacks this as a further view of the model.
"""

from .repaired import Diagnosis, Repair, Repaired, repaired

__all__ = ["Diagnosis", "Repair", "Repaired", "repaired"]
