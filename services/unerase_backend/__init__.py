"""The unerase backend."""
