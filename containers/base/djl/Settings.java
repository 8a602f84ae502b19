import ai.djl.repository.FilenameUtils;
import ai.djl.util.NeuronUtils;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** The checked configuration: command line, file and environment, in upstream's order of precedence. */
record Settings(
        String address,
        String modelName,
        String modelUrl,
        Map<String, String> options,
        Map<String, Object> arguments,
        int queueSize,
        int maxRequestSize,
        int chunkedReadTimeout,
        int workers,
        int retryThreshold,
        boolean failFast,
        Path metrics) {

    private static final String INT = "[1-9][0-9]{0,8}";
    private static final String ADDRESS = "http://[^/:]+:[0-9]+";
    private static final String WORKERS = "[1-9][0-9]?";
    private static final String NOTHING = "(?!)";

    /** config.properties (or SERVING_ + upper case in the environment, which wins): what values are taken. */
    private static final Map<String, String> CONFIG =
            Map.of(
                    "inference_address", ADDRESS,
                    "management_address", ADDRESS,
                    "model_store", "/.*",
                    "load_models", ".+",
                    "job_queue_size", INT,
                    "max_request_size", INT,
                    "chunked_read_timeout", INT,
                    "batch_size", "1",
                    "load_on_devices", "-1|\\*",
                    "wait_model_loading", "true");

    /** Upstream reads these from the environment alone: ModelInfo, not ConfigManager. */
    private static final Map<String, String> ENVIRONMENT =
            Map.ofEntries(
                    Map.entry("SERVING_MIN_WORKERS", WORKERS),
                    Map.entry("SERVING_MAX_WORKERS", WORKERS),
                    Map.entry("SERVING_RETRY_THRESHOLD", "[0-9]{1,9}"),
                    Map.entry("SERVING_FAIL_FAST", "true|false"),
                    Map.entry("HF_MODEL_ID", NOTHING),
                    Map.entry("DJL_CLUSTER_SIZE", "1"),
                    Map.entry("SAGEMAKER_MULTI_MODEL", "false"),
                    Map.entry("SAGEMAKER_SECURE_MODE", "false"),
                    Map.entry("SAGEMAKER_HEALTH_CHECK_OVERRIDE", "false"),
                    Map.entry("ALLOW_REQUEST_HANDLER_OVERRIDE", "false"),
                    Map.entry("SERVING_PROMETHEUS", "true|false"));

    /** Options that Java itself would act on; every other OPTION_ is the handler's and passed through. */
    private static final Map<String, String> OPTIONS =
            Map.of(
                    "engine", "Python",
                    "rolling_batch", "disable|custom",
                    "mpi_mode", "false",
                    "async_mode", "false",
                    "enable_lora", "false",
                    "enable_stateful_sessions", "false",
                    "log_request_metric", "false",
                    "model_id", "/.*",
                    "speculative_draft_model", "(?!s3:).*",
                    "load_on_devices", NOTHING);

    /** name:version:engine:device=URL; version and device left out or the default. */
    private static final Pattern MODEL =
            Pattern.compile("([\\w-]+)(?:::(Python|)(?::(?:\\*|-1|))?)?=(?:file:(?://)?)?(/[^, %]*)");

    static Settings read(String[] args, Map<String, String> env) throws Refused, IOException {
        Map<String, String> config = config(args, env);
        Map<String, String> options = options(env);
        String[] model = model(config);
        Path directory = Path.of(model[2]);
        Map<String, Object> arguments = new HashMap<>(); // upstream ModelInfo: the handler's first call has these too
        arguments.put("maxWorkers", env.getOrDefault("SERVING_MAX_WORKERS", "unset"));
        if (env.containsKey("SERVING_MIN_WORKERS")) {
            arguments.put("minWorkers", env.get("SERVING_MIN_WORKERS"));
        }
        if (options.containsKey("engine")) {
            arguments.put("engine", options.remove("engine"));
        } else if (!"Python".equals(model[1])) {
            throw new Refused("OPTION_ENGINE=Python is required: DJL would guess the engine from the files");
        }
        check(directory, config, env);
        recommend(directory, options, env);
        return new Settings(
                config.getOrDefault("inference_address", "http://127.0.0.1:8080"),
                model[0],
                directory.toUri().toString(),
                options,
                arguments,
                Integer.parseInt(config.getOrDefault("job_queue_size", "1000")),
                Integer.parseInt(config.getOrDefault("max_request_size", "67108864")),
                Integer.parseInt(config.getOrDefault("chunked_read_timeout", "120")),
                Integer.parseInt(env.get("SERVING_MAX_WORKERS")),
                Integer.parseInt(env.getOrDefault("SERVING_RETRY_THRESHOLD", "0")),
                Boolean.parseBoolean(env.get("SERVING_FAIL_FAST")),
                Boolean.parseBoolean(env.get("SERVING_PROMETHEUS"))
                        ? Path.of(env.getOrDefault("MODEL_SERVER_HOME", "."))
                        : null);
    }

    String host() {
        return URI.create(address).getHost();
    }

    int port() {
        return URI.create(address).getPort();
    }

    /** Upstream ConfigManager: the file, then every SERVING_ variable over it. */
    private static Map<String, String> config(String[] args, Map<String, String> env)
            throws Refused, IOException {
        if (args.length != 2 || !"-f".equals(args[0])) {
            throw new Refused("usage: djl-serving -f config.properties");
        }
        Properties file = new Properties();
        if (!Files.isRegularFile(Path.of(args[1]))) {
            throw new Refused("Configuration file not found: " + args[1]);
        }
        try (InputStream in = Files.newInputStream(Path.of(args[1]))) {
            file.load(in);
        }
        Map<String, String> config = new TreeMap<>();
        for (String key : file.stringPropertyNames()) {
            Refused.unless(CONFIG, key, key, file.getProperty(key));
            config.put(key, file.getProperty(key));
        }
        for (Map.Entry<String, String> e : env.entrySet()) {
            String name = e.getKey();
            if (ENVIRONMENT.containsKey(name)) {
                Refused.unless(ENVIRONMENT, name, name, e.getValue());
            } else if (name.startsWith("SERVING_")) {
                String key = name.substring("SERVING_".length()).toLowerCase();
                Refused.unless(CONFIG, key, name, e.getValue());
                config.put(key, e.getValue());
            } else if (name.startsWith("ARGS_")) {
                throw new Refused(name + " is not implemented by this local server");
            }
        }
        return config;
    }

    /** Upstream ModelInfo.loadServingProperties: OPTION_FOO is option.foo; mixed case is kept. */
    private static Map<String, String> options(Map<String, String> env) throws Refused {
        Map<String, String> options = new HashMap<>();
        for (Map.Entry<String, String> e : env.entrySet()) {
            if (!e.getKey().startsWith("OPTION_") || e.getValue().isEmpty()) {
                continue;
            }
            String key = e.getKey().substring("OPTION_".length());
            key = key.matches("[A-Z_0-9]+") ? key.toLowerCase() : key;
            if (OPTIONS.containsKey(key)) {
                Refused.unless(OPTIONS, key, e.getKey(), e.getValue());
            }
            options.put("entrypoint".equals(key) ? "entryPoint" : key, e.getValue());
        }
        if (!options.containsKey("rolling_batch")) {
            // Upstream LmiConfigRecommender would choose one by the model and the image.
            throw new Refused("OPTION_ROLLING_BATCH is required: disable or custom");
        }
        return options;
    }

    /** Upstream ModelStore: name, engine and URL of the one model. */
    private static String[] model(Map<String, String> config) throws Refused, IOException {
        String load = config.getOrDefault("load_models", "ALL");
        if ("ALL".equalsIgnoreCase(load)) {
            Path store = Path.of(config.getOrDefault("model_store", ""));
            if (!store.isAbsolute() || !Files.isDirectory(store)) {
                throw new Refused("model_store must be the model's directory: '" + store + "' is none");
            }
            try (Stream<Path> files = Files.list(store)) {
                if (files.allMatch(Settings::couldBeModel)) {
                    throw new Refused("model_store=" + store + " holds no file: DJL Serving takes a directory of"
                            + " directories for a store of several models");
                }
            }
            String name = store.getFileName().toString().replaceAll("(\\W|^_)", "_");
            return new String[] {name, "", store.toString()};
        }
        Matcher m = MODEL.matcher(load);
        if (!m.matches()) {
            throw new Refused("load_models=" + load + ": this local server takes one name::Python:*=file:///directory");
        }
        return new String[] {m.group(1), m.group(2), m.group(3)};
    }

    private static boolean couldBeModel(Path p) {
        String name = p.getFileName().toString();
        return Files.isDirectory(p) || name.startsWith(".") || FilenameUtils.isArchiveFile(name);
    }

    private static void check(Path directory, Map<String, String> config, Map<String, String> env)
            throws Refused {
        String workers = env.get("SERVING_MAX_WORKERS");
        if (workers == null || !workers.equals(env.getOrDefault("SERVING_MIN_WORKERS", workers))) {
            throw new Refused("SERVING_MAX_WORKERS is required, and SERVING_MIN_WORKERS must be the same: DJL Serving's"
                    + " default is a worker for each processor, and it would start and stop them by the load");
        }
        String home = env.get("MODEL_SERVER_HOME");
        if (home != null && !Files.isDirectory(Path.of(home))) {
            throw new Refused("Model server home not exist: " + home);
        }
        if (!Files.isDirectory(directory)) {
            throw new Refused("no model directory at " + directory);
        }
        if (Files.exists(directory.resolve("serving.properties"))) {
            throw new Refused("serving.properties in the model directory is not read; use OPTION_ variables");
        }
        boolean accelerators = NeuronUtils.hasNeuron() || Files.exists(Path.of("/dev/nvidia0"));
        if (accelerators && !"-1".equals(config.get("load_on_devices"))) {
            throw new Refused("this local server knows CPU only; set SERVING_LOAD_ON_DEVICES=-1, or DJL_SERVING to"
                    + " the launcher of a real DJL Serving");
        }
    }

    /** Upstream LmiConfigRecommender: what a model with a config.json gets beside its own options. */
    private static void recommend(Path directory, Map<String, String> options, Map<String, String> env) {
        Path other = Path.of(options.getOrDefault("model_id", directory.toString()));
        if (!Files.exists(directory.resolve("config.json")) && !Files.exists(other.resolve("config.json"))) {
            return;
        }
        options.putIfAbsent("max_rolling_batch_size", "32");
        options.putIfAbsent("pipeline_parallel_degree", env.getOrDefault("PIPELINE_PARALLEL_DEGREE", "1"));
        String degree = env.getOrDefault("TENSOR_PARALLEL_DEGREE", "max");
        if (!"max".equals(degree)) { // on a host without accelerators max is none
            options.putIfAbsent("tensor_parallel_degree", degree);
        }
    }

    /** A configuration that this server does not implement; the message is the one line the user sees. */
    static final class Refused extends Exception {
        private static final long serialVersionUID = 1L;

        Refused(String message) {
            super(message);
        }

        static void unless(Map<String, String> table, String key, String shown, String value) throws Refused {
            String allowed = table.get(key);
            if (allowed == null || NOTHING.equals(allowed)) {
                throw new Refused(shown + " is not implemented by this local server; unset it, or set DJL_SERVING"
                        + " to the launcher of a real DJL Serving");
            }
            if (!value.matches(allowed)) {
                String words = INT.equals(allowed)
                        ? "a positive whole number"
                        : WORKERS.equals(allowed)
                        ? "a whole number from 1 to 99"
                        : ADDRESS.equals(allowed) ? "http://HOST:PORT" : allowed.replace("|", " or ");
                throw new Refused(shown + "=" + value + " is not implemented by this local server, which takes "
                        + words);
            }
        }
    }
}
