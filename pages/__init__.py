"""Self-contained HTML pages from templates: sounds, pictures and style are inside. Nothing else knows HTML."""
