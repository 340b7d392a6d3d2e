"""The gin files that ship with the package; always on gin's search path."""
