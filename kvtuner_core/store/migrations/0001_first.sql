-- A score or a profile is stored once under the content address of what it measures.
CREATE TABLE scores (
    key VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL,
    kl DOUBLE NOT NULL,
    kl_low DOUBLE NOT NULL,
    kl_high DOUBLE NOT NULL,
    top1_agreement DOUBLE NOT NULL,
    nll_change DOUBLE NOT NULL,
    kl_per_prompt DOUBLE[] NOT NULL,
    tokens_per_prompt BIGINT[] NOT NULL,
    cache_bytes BIGINT NOT NULL,
    seconds DOUBLE NOT NULL,
    created VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_type VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL,
    versions VARCHAR NOT NULL
);

CREATE TABLE profiles (
    key VARCHAR PRIMARY KEY,
    identity VARCHAR NOT NULL,
    layer INTEGER NOT NULL,
    pair VARCHAR NOT NULL,
    key_error DOUBLE NOT NULL,
    value_error DOUBLE NOT NULL,
    score_error DOUBLE NOT NULL,
    output_error DOUBLE NOT NULL,
    kl DOUBLE NOT NULL,
    created VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    device_type VARCHAR NOT NULL,
    dtype VARCHAR NOT NULL,
    versions VARCHAR NOT NULL
);

CREATE SEQUENCE run_number;

CREATE TABLE runs (
    id VARCHAR PRIMARY KEY,
    number BIGINT NOT NULL DEFAULT nextval('run_number'),
    kind VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    spec VARCHAR NOT NULL,
    created VARCHAR NOT NULL,
    started VARCHAR NOT NULL,
    finished VARCHAR NOT NULL,
    stage VARCHAR NOT NULL,
    done BIGINT NOT NULL,
    total BIGINT NOT NULL,
    error VARCHAR NOT NULL
);

CREATE TABLE results (
    run VARCHAR PRIMARY KEY,
    body VARCHAR NOT NULL
);

-- What a worker said of a model: the signature names device, dtype and the state of its files.
CREATE TABLE models (
    reference VARCHAR NOT NULL,
    signature VARCHAR NOT NULL,
    report VARCHAR NOT NULL,
    PRIMARY KEY (reference, signature)
);

CREATE TABLE uploads (
    digest VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    body BLOB NOT NULL,
    created VARCHAR NOT NULL
);
