"""The uncertainty run: every figure of `holdfast uncertainty`, in stages that a run remembers."""
