"""The machine and the process: processor, memory, TensorFlow, Unicode, formatting."""
