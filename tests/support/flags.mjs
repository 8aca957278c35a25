// Watches one flag through an official provider of the OpenFeature project and says what it sees, one
// JSON line for each change. Arguments: server|web, base address, token, workspace, flag, feature.
import { createRequire } from 'node:module';

const [kind, baseUrl, token, workspace, flag, feature] = process.argv.slice(2);
const require = createRequire(`${process.env.CMEK_TEST_NODE}/package.json`);
const say = (what, details) => console.log(JSON.stringify({ what, ...details }));
const seen = ({ value, reason, variant, errorCode, flagMetadata }) => ({ value, reason, variant, errorCode, metadata: flagMetadata });
const headers = [['authorization', `Bearer ${token}`]];

if (kind === 'server') {
  const { OpenFeature } = require('@openfeature/server-sdk');
  const { OFREPProvider } = require('@openfeature/ofrep-provider');
  await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl, headers }));
  const client = OpenFeature.getClient();
  const ask = (name, context = { targetingKey: workspace }) => client.getBooleanDetails(name, false, context);
  say('unknown flag', seen(await client.getBooleanDetails('no_such_flag', true, { targetingKey: workspace })));
  say('unknown workspace', seen(await client.getBooleanDetails(flag, true, { targetingKey: 'wrkspc_ghost' })));
  say('no workspace', seen(await client.getBooleanDetails(flag, true, {})));
  say('feature', seen(await ask(feature)));
  let last;
  for (;;) {
    const details = await ask(flag);
    if (details.value !== last) {
      last = details.value;
      say('flag', seen(details));
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
} else {
  globalThis.EventSource = require('eventsource').EventSource;
  const { OpenFeature, ProviderEvents } = require('@openfeature/web-sdk');
  const { OFREPWebProvider } = require('@openfeature/ofrep-web-provider');
  // Counts what comes back, and sees to it that nothing but the event stream makes the provider ask.
  let unchanged = 0;
  const fetchImplementation = async (...request) => {
    const response = await fetch(...request);
    if (response.status === 304) unchanged += 1;
    return response;
  };
  await OpenFeature.setContext({ targetingKey: workspace });
  await OpenFeature.setProviderAndWait(new OFREPWebProvider({ baseUrl, headers, fetchImplementation, pollInterval: 0 }));
  const client = OpenFeature.getClient();
  say('feature', seen(client.getBooleanDetails(feature, false)));
  say('flag', seen(client.getBooleanDetails(flag, false)));
  client.addHandler(ProviderEvents.ConfigurationChanged, () => say('flag', { ...seen(client.getBooleanDetails(flag, true)), unchanged }));
  setInterval(() => {}, 1000);
}
