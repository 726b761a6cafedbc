"""What every process of Allotment needs: settings, servers, database, clock, log and metrics."""
