//! Replication. To be written.
