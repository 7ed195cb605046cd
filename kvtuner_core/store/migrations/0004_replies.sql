-- How one policy's cache answered one question, stored once under the content address of both.
CREATE TABLE replies (
    key VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL,
    correct BOOLEAN NOT NULL,
    nll DOUBLE NOT NULL,
    given VARCHAR NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    created VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_type VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL,
    versions VARCHAR NOT NULL
);
