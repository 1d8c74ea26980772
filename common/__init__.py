"""What every room uses: errors, the command line, progress bars, worker processes."""
