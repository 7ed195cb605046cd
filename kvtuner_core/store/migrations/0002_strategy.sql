-- Searches from before strategies had names were NSGA-II over layer groups; a missing name now means another one.
UPDATE runs SET spec = '{"strategy":"nsga2",' || substr(spec, 2)
WHERE kind = 'search' AND spec LIKE '{"sweep":%' AND spec NOT LIKE '%"strategy":%';

UPDATE results SET body = replace(body, '"spec":{"sweep":', '"spec":{"strategy":"nsga2","sweep":')
WHERE body NOT LIKE '%"strategy":%';
