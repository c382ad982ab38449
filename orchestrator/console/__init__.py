"""What people look at after a run, and during it: self-contained reports, numbers as people read them."""
