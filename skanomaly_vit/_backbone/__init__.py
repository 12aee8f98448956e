"""The frozen backbone: loading, passes, cached tokens, shared work, students' errors, maps."""
