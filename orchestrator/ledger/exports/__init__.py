"""Reports as files: CSV and Parquet for programs, XLSX for finance teams, HTML for screens and paper."""
