-- What was seen of policies whose evaluation was stopped, as JSON; apart from scores, so that none is taken for one.
CREATE TABLE partial_scores (
    key VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL,
    body VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_type VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL,
    versions VARCHAR NOT NULL
);
