"""The formats of `moce prepare`."""

FORMATS = ("parquet", "tar", "array")
