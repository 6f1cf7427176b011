from .detect import Layout, read_schema


__all__ = ["Layout", "read_schema"]
