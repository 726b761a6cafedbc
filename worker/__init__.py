"""The arq worker: applies the usage log to PostgreSQL, loads users, keeps partitions and logs in order."""
