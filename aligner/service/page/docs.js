const make = (name, text = "", ...children) => {
  const element = document.createElement(name);
  element.textContent = text;
  element.append(...children);
  return element;
};
// Text in which `this` is code.
const prose = (name, text) => make(name, "", ...text.split("`").map((part, i) => i % 2 ? make("code", part) : part));
const paragraphs = (text) => text.split("\n\n").map((part) => prose("p", part));
// A name that is broken between its parts where the column is narrow.
const named = (text) => make("code", "", ...text.split(/(?<=[._])/).flatMap((part) => [part, make("wbr")]));
const table = (rows) => {
  const element = make("table");
  for (const [name, text] of rows) element.append(make("tr", "", make("td", "", named(name)), prose("td", text)));
  return element;
};
// A table that opens when it is wanted.
const folded = (title, rows) => make("details", "", make("summary", title), table(rows));
(async () => {
  const api = await (await fetch("openapi.json")).json();
  const resolve = (schema) => schema?.$ref ? schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api) : schema;
  // The objects that a field holds: itself, its items, or one of several choices.
  const objects = (field) => [field, ...(field.anyOf || [])].flatMap((one) => {
    const item = resolve(one), inner = resolve(item.items);
    if (item.properties) return [["", item]];
    return inner ? objects(inner).map(([path, object]) => ["[]" + path, object]) : [];
  });
  const fieldsOf = (schema, before) => Object.entries(schema.properties).flatMap(([name, field]) => {
    const found = objects(field), about = field.description || found.map(([, object]) => object.description).join(" Or: ") || field.type || "";
    return [[before + name, about], ...found.flatMap(([path, object]) => fieldsOf(object, `${before}${name}${path}.`))];
  });
  document.getElementById("about").append(...paragraphs(api.info.description));
  for (const [path, operations] of Object.entries(api.paths)) for (const [method, one] of Object.entries(operations)) {
    const title = () => make("code", `${method.toUpperCase()} ${path}`);
    const link = make("a", "", title());
    link.href = `#${one.operationId}`;
    document.getElementById("index").append(make("li", "", link));
    const section = make("section", "", make("h2", "", title()), ...paragraphs(one.description || one.summary));
    section.id = one.operationId;
    const form = resolve(one.requestBody?.content?.["multipart/form-data"]?.schema);
    const fields = Object.entries(form?.properties || {});
    const inputs = [...fields.map(([name, field]) => [name, `form: ${field.description || ""}`]),
                    ...(one.parameters || []).map((p) => [p.name, `${p.in}: ${p.description || ""}`])];
    if (inputs.length) section.append(make("h3", "Takes"), table(inputs));
    section.append(make("h3", "Answers"), table(Object.entries(one.responses).map(([code, r]) => [code, r.description])));
    const schema = resolve(one.responses["200"]?.content?.["application/json"]?.schema);
    if (schema?.properties) section.append(folded("Fields of the answer", fieldsOf(schema, "")));
    document.getElementById("operations").append(section);
  }
  // The sections were not there when the browser looked for the one that the address names.
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
})();
