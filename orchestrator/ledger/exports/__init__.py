"""Reports as files: CSV and Parquet for machines, XLSX for a finance desk, HTML for paper and screens."""
