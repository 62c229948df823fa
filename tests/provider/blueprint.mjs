// Checks a blueprint against authentik's own models, as its generated client has them:
//
//   node blueprint.mjs FILE
//
// Every attribute of every entry must be one that the model's serializer takes, with values that its enumerations have,
// and every required one must be there. Prints what is wrong, one line each.
import { readFileSync } from 'node:fs';
import * as api from '@goauthentik/api';
import { parse } from 'yaml';

// A tag is what it stands for: something that the API would get as a text, a number or null.
const tags = ['!Find', '!File', '!KeyOf', '!Env', '!Format', '!Condition'];
const customTags = tags.flatMap((tag) => [
  { tag, resolve: () => tag },
  { tag, collection: 'seq', resolve: () => tag },
]);

const models = {
  'authentik_providers_oauth2.oauth2provider': 'OAuth2ProviderRequest',
  'authentik_providers_scim.scimprovider': 'SCIMProviderRequest',
  'authentik_core.application': 'ApplicationRequest',
  'authentik_core.group': 'GroupRequest',
  'authentik_core.user': 'UserRequest',
  'authentik_core.token': 'TokenRequest',
};
// What serializers take from blueprints alone: authentik/core/api/users.py and tokens.py (SERIALIZER_CONTEXT_BLUEPRINT).
const fromBlueprints = { 'authentik_core.user': ['password'], 'authentik_core.token': ['key'] };
const enums = {
  grant_types: api.GrantTypeEnum, client_type: api.ClientTypeEnum, logout_method: api.OAuth2ProviderLogoutMethodEnum,
  matching_mode: api.MatchingModeEnum, redirect_uri_type: api.RedirectURITypeEnum, type: api.UserTypeEnum,
  intent: api.IntentEnum,
};
// What the API lets be left out, and Berth doesn't work without.
const needed = {
  'authentik_providers_oauth2.oauth2provider': [
    'grant_types', 'client_id', 'client_secret', 'property_mappings', 'signing_key', 'logout_uri', 'logout_method',
  ],
  'authentik_providers_scim.scimprovider': ['url', 'token', 'property_mappings', 'property_mappings_group'],
  'authentik_core.token': ['key', 'user', 'intent'],
};
const entryKeys = ['model', 'id', 'identifiers', 'attrs', 'state', 'conditions', 'permissions'];

const problems = [];
// What was given and didn't come through the model is unknown to it.
function lost(given, through, path) {
  for (const [key, value] of Object.entries(given)) {
    if (through?.[key] === undefined) problems.push(`${path}.${key}: the model has no such field`);
    else if (value && typeof value === 'object') lost(value, through[key], `${path}.${key}`);
  }
}
function valid(value, path, key) {
  if (Array.isArray(value)) value.forEach((one, i) => valid(one, `${path}[${i}]`, key));
  else if (value && typeof value === 'object') Object.entries(value).forEach(([name, one]) => valid(one, `${path}.${name}`, name));
  else if (enums[key] && !Object.values(enums[key]).includes(value)) problems.push(`${path}: ${value} is no value of it`);
}

const blueprint = parse(readFileSync(process.argv[2], 'utf8'), { customTags });
for (const [i, entry] of blueprint.entries.entries()) {
  const path = `entries[${i}] (${entry.model})`;
  for (const key of Object.keys(entry)) if (!entryKeys.includes(key)) problems.push(`${path}.${key}: an entry has no such key`);
  if (entry.model === 'authentik_blueprints.metaapplyblueprint') continue;
  const model = models[entry.model];
  if (!model) {
    problems.push(`${path}: the model is not known here`);
    continue;
  }
  const attrs = { ...entry.identifiers, ...entry.attrs };
  for (const key of needed[entry.model] ?? []) if (!attrs[key]) problems.push(`${path}.${key}: is missing`);
  for (const key of fromBlueprints[entry.model] ?? []) delete attrs[key];
  // The client's own conversion, which knows every field; lists of what the API gets as a list.
  const given = api[`${model}FromJSON`](attrs);
  lost(attrs, api[`${model}ToJSON`](given), path);
  if (entry.identifiers && !entry.conditions && !api[`instanceOf${model}`](given)) {
    problems.push(`${path}: a required field is missing`);
  }
  valid(attrs, path, '');
}
problems.forEach((problem) => console.log(problem));
process.exit(problems.length ? 1 : 0);
