"""What quantizers take for the matrices of a model: experts that one tensor holds, Conv1D, and how the audit sees tensors."""
