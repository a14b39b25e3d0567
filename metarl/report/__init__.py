"""What people look at: text, pictures and films."""
