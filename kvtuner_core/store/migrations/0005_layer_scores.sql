-- How long the two parts of a profile took; not known of older ones.
ALTER TABLE profiles ADD COLUMN local_seconds DOUBLE DEFAULT 0;
ALTER TABLE profiles ADD COLUMN kl_seconds DOUBLE DEFAULT 0;

-- Scores of all layers that come from one pass, as JSON, under the content address of what they measure.
CREATE TABLE layer_scores (
    key VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL,
    body VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_type VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL,
    versions VARCHAR NOT NULL
);
