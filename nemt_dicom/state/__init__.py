"""What survives a power cut: the spool of files and the database."""
