"""Pure selection: which server owns a key, and which come next."""
