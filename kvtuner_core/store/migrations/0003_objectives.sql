-- Objectives beside the mean KL, as JSON; scores from before have none and are measured again where one is asked for.
ALTER TABLE scores ADD COLUMN others VARCHAR;
