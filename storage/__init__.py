"""Where bytes come from: files, URLs, Parquet."""
