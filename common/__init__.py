"""What every room uses: errors, files, secrets, the command line, progress bars, worker processes."""
