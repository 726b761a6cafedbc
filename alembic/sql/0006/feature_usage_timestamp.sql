-- feature_usage_timestamp: for whoever counts by hand.  The service says when a feature was used, also where that is
-- earlier than the last use, and sets allotment.gives_last_used for that.
-- AFTER, because a BEFORE trigger would lock and read each row that a worker updates once more.
CREATE TRIGGER feature_usage_timestamp AFTER UPDATE ON feature_usage
FOR EACH ROW
WHEN (NEW.usage_count > OLD.usage_count AND NEW.last_used <= OLD.last_used
      AND current_setting('allotment.gives_last_used', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION update_feature_usage_timestamp()
