// Shows the description of the service that this page comes from, and nothing from elsewhere.
document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);

const folder = new URL(".", location.href).pathname.replace(/\/$/, "");

/** A description that names no server is of the folder that it lies in: a proxy may have put a prefix before it. */
const here = () => ({
  statePlugins: {
    spec: {
      wrapActions: {
        updateJsonSpec: (update) => (spec) => update(folder ? { servers: [{ url: folder }], ...spec } : spec),
      },
    },
  },
});

/** Swagger UI fills the query with defaults; fields count there only if the body is the image, and are refused else. */
function withoutQuery(request) {
  const type = String(request.headers?.["Content-Type"] ?? "");
  if (/\/generation\/?\?/.test(request.url) && !type.startsWith("image/")) request.url = request.url.split("?")[0];
  return request;
}

SwaggerUIBundle({
  url: "openapi.json",
  plugins: [here],
  requestInterceptor: withoutQuery,
  dom_id: "#description",
  deepLinking: true, // each operation has an address
  validatorUrl: null, // it would be asked for its opinion, on the internet
  defaultModelsExpandDepth: 0,
  defaultModelExpandDepth: 3,
  displayRequestDuration: true,
});
