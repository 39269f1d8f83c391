"""The uncertainty run: every figure of `holdfast uncertainty`, in steps that a run folder keeps."""
